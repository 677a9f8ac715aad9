//! The shortest history that still fails, as far as it can be found by leaving things out.

use std::time::{Duration, Instant};

use super::{judge, oracle::Violation, plan::Plan};

/// What became of a failing plan.
pub struct Shrunk {
    /// What is left of it.
    pub plan: Plan,
    /// What it violates.
    pub violation: Violation,
    /// Runs that were made.
    pub runs: u64,
}

/// Leaves out faults, clients and operations, in pieces that get smaller, as long as the rest breaks the same promise, for at
/// most `budget`. `None` if the plan does not fail. `progress` is told how much is left.
pub fn shrink(plan: &Plan, budget: Duration, mut progress: impl FnMut(usize)) -> Option<Shrunk> {
    let began = Instant::now();
    let run = |plan: &Plan| judge(plan).0;
    let (violation, _) = run(plan).failure?;
    let mut found = Shrunk { plan: plan.clone(), violation, runs: 1 };
    let kind = found.violation.kind();
    let attempt = |found: &mut Shrunk, plan: Plan| {
        found.runs += 1;
        let Some((violation, _)) = run(&plan).failure.filter(|(violation, _)| violation.kind() == kind)
        else {
            return false;
        };
        (found.plan, found.violation) = (plan, violation);
        true
    };
    let at = found.violation.at;
    attempt(&mut found, plan.until(at));
    let mut piece = found.plan.len().div_ceil(2).max(1);
    loop {
        let (mut from, mut has_shrunk) = (0, false);
        while from < found.plan.len() {
            if began.elapsed() > budget {
                return Some(found);
            }
            let smaller = found.plan.without(from..from + piece);
            if attempt(&mut found, smaller) {
                has_shrunk = true;
                progress(found.plan.len());
            } else {
                from += piece;
            }
        }
        if piece == 1 && !has_shrunk {
            return Some(found);
        }
        piece = if has_shrunk && piece == 1 { 1 } else { piece.div_ceil(2).max(1) };
        if piece == 1 && found.plan.is_empty() {
            return Some(found);
        }
    }
}
