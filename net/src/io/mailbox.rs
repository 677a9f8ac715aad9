//! Questions from other threads to a role, which looks for them once per turn and pays one atomic load when there are none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crossbeam::channel::{self, Receiver, Sender};
use tokio::sync::oneshot;

use crate::io::ring::Waker;

/// Questions that wait for one role at most.
const WAITING_MAX: usize = 64;
/// How long a role may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// One question, to be answered once.
pub struct Question<Q, A> {
    /// What is asked.
    pub ask: Q,
    answer: oneshot::Sender<A>,
}

/// The end of a role.
pub struct Mailbox<Q, A> {
    questions: Receiver<Question<Q, A>>,
    has_some: Arc<AtomicBool>,
}

/// The end of everybody else.
pub struct Post<Q, A> {
    questions: Sender<Question<Q, A>>,
    has_some: Arc<AtomicBool>,
    waker: Option<Waker>,
}

/// Why a question was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The role has as many questions as it may.
    #[error("{WAITING_MAX} questions wait already: ask again later")]
    Full,
    /// The role has ended.
    #[error("the thread that would answer has ended")]
    Gone,
    /// The role did not answer in time.
    #[error("no answer within {} s: the thread that would answer is busy, ask again later", ANSWER_TIMEOUT.as_secs())]
    Late,
}

/// Both ends of a mailbox.
pub fn mailbox<Q, A>() -> (Post<Q, A>, Mailbox<Q, A>) {
    let (sender, questions) = channel::bounded(WAITING_MAX);
    let has_some = Arc::new(AtomicBool::new(false));
    let post = Post { questions: sender, has_some: has_some.clone(), waker: None };
    (post, Mailbox { questions, has_some })
}

impl<Q, A> Mailbox<Q, A> {
    /// The next question, if there is one.
    pub fn take(&self) -> Option<Question<Q, A>> {
        if !self.has_some.load(Ordering::SeqCst) {
            return None;
        }
        self.questions.try_recv().ok().or_else(|| {
            self.has_some.store(false, Ordering::SeqCst);
            // What came before the store would not be noticed any more.
            self.questions.try_recv().ok()
        })
    }
}

impl<Q, A> Question<Q, A> {
    /// Tells the answer. Whoever asked may have gone meanwhile.
    pub fn tell(self, answer: A) {
        let _ = self.answer.send(answer);
    }
}

impl<Q, A> Post<Q, A> {
    /// The same, which ends the role's sleep with each question.
    #[must_use]
    pub fn waking(self, waker: Waker) -> Self {
        Self { waker: Some(waker), ..self }
    }

    /// Asks and waits for the answer.
    pub async fn ask(&self, ask: Q) -> Result<A, AskError> {
        let (answer, answered) = oneshot::channel();
        match self.questions.try_send(Question { ask, answer }) {
            Ok(()) => {}
            Err(channel::TrySendError::Full(_)) => return Err(AskError::Full),
            Err(channel::TrySendError::Disconnected(_)) => return Err(AskError::Gone),
        }
        self.has_some.store(true, Ordering::SeqCst);
        if let Some(waker) = &self.waker {
            let _ = waker.wake();
        }
        match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
            Ok(answer) => answer.map_err(|_| AskError::Gone),
            Err(_) => Err(AskError::Late),
        }
    }
}

impl<Q, A> Clone for Post<Q, A> {
    fn clone(&self) -> Self {
        let Self { questions, has_some, waker } = self;
        Self { questions: questions.clone(), has_some: has_some.clone(), waker: waker.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(future)
    }

    #[test]
    fn every_question_of_many_threads_is_answered_once() {
        let (post, mailbox) = mailbox::<u64, u64>();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let post = post.clone();
                scope.spawn(move || {
                    for number in 0..500 {
                        let ask = thread * 1000 + number;
                        assert_eq!(block_on(post.ask(ask)), Ok(ask + 1));
                    }
                });
            }
            let mut answered = 0;
            while answered < 2000 {
                match mailbox.take() {
                    Some(question) => {
                        answered += 1;
                        let answer = question.ask + 1;
                        question.tell(answer);
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
        assert!(mailbox.take().is_none());
    }

    #[test]
    fn a_role_that_has_ended_or_has_too_many_questions_says_so() {
        let (post, mailbox) = mailbox::<(), ()>();
        let ask = || async {
            // Dropped at once: the question stays, nobody waits for its answer.
            let _ = tokio::time::timeout(Duration::ZERO, post.ask(())).await;
        };
        block_on(async {
            for _ in 0..WAITING_MAX {
                ask().await;
            }
        });
        assert_eq!(block_on(post.ask(())), Err(AskError::Full));
        drop(mailbox);
        assert_eq!(block_on(post.ask(())), Err(AskError::Gone));
    }
}
