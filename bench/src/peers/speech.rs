//! What a publish/subscribe protocol has to say for itself here.

use anyhow::Result;

/// What a server said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said<'a> {
    /// A publisher may begin, or a subscriber's subscription is in effect.
    Ready,
    /// A whole message.
    Message(&'a [u8]),
    /// A question that has to be answered with these bytes, or the server closes.
    Ask(&'static [u8]),
}

/// How a server is started and spoken to.
pub trait Speech: Sized {
    /// Name for people.
    const NAME: &'static str;
    /// The binary and the Debian package that it is in; `None`: our own binary.
    const BINARY: Option<(&'static str, &'static str)>;

    /// Arguments of the server; `folder` is empty and goes away with it.
    fn arguments(port: u16, subscribers: u32, folder: &str) -> Vec<String>;

    /// A publisher of messages of `message_bytes` in `topics` topics.
    fn new(topics: u32, message_bytes: usize) -> Result<Self>;

    /// What a publisher says first. It has begun after as many [`Said::Ready`] as are returned with it.
    fn begin(&mut self) -> Result<(Vec<u8>, usize)>;

    /// What a subscriber of a topic says first.
    fn subscribe(&self, subscriber: u32, topic: u32) -> Result<Vec<u8>>;

    /// One message in each topic, whose text begins with the number of the round.
    fn publish(&mut self, round: u64) -> Result<Vec<u8>>;

    /// Takes one thing that was said from the start of `bytes`. Returns its length; 0: it is not all there.
    fn take(bytes: &[u8], on_said: &mut dyn FnMut(Said<'_>)) -> Result<usize>;
}

/// Digits of a round in a message.
pub const ROUND_BYTES: usize = 16;

/// The message of a round: its number, and padding.
pub fn message(round: u64, bytes: usize) -> Vec<u8> {
    let mut message = format!("{round:016}").into_bytes();
    message.resize(bytes.max(ROUND_BYTES), b'.');
    message
}

/// The round that a message is of.
pub fn round_of(message: &[u8]) -> Option<u64> {
    let digits = message.get(..ROUND_BYTES)?;
    digits.iter().try_fold(0u64, |round, digit| {
        digit.is_ascii_digit().then(|| round.wrapping_mul(10) + u64::from(digit - b'0'))
    })
}

/// The first line of `bytes` without its end, and the length with it.
pub fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&bytes[..end], end + 2))
}

/// A decimal number.
pub fn number(digits: &[u8]) -> Result<usize> {
    let text = std::str::from_utf8(digits)?;
    text.parse().map_err(|_| anyhow::anyhow!("{text:?} is no length"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What is said in `stream`, however it is cut.
    pub(crate) fn said<S: Speech>(stream: &[u8]) -> Vec<String> {
        let hear = |step: usize| {
            let (mut held, mut heard) = (Vec::new(), Vec::new());
            for chunk in stream.chunks(step) {
                held.extend_from_slice(chunk);
                loop {
                    let took = S::take(&held, &mut |said| {
                        heard.push(match said {
                            Said::Ready => "ready".to_string(),
                            Said::Message(message) => String::from_utf8_lossy(message).into(),
                            Said::Ask(answer) => format!("ask {}", String::from_utf8_lossy(answer).trim()),
                        });
                    })
                    .expect("it can be read");
                    if took == 0 {
                        break;
                    }
                    held.drain(..took);
                }
            }
            assert!(held.is_empty(), "{held:?} is left");
            heard
        };
        let whole = hear(stream.len());
        for step in [1, 2, 3, 7, 64] {
            assert_eq!(hear(step), whole, "cut every {step} bytes");
        }
        whole
    }

    #[test]
    fn a_message_tells_its_round() {
        assert_eq!(message(17, 40).len(), 40);
        assert_eq!(round_of(&message(17, 40)), Some(17));
        assert_eq!(round_of(b"12"), None);
        assert_eq!(round_of(b"000000000000001x"), None);
    }
}
