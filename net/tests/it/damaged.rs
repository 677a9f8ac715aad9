//! The targets of `net/fuzz`, each run on a bounded number of damaged inputs that are always the same.

use crate::fuzz::{Outcome, TARGETS};

#[test]
fn damaged_bytes_disturb_nobody_but_who_sent_them() {
    let count = 1000;
    for target in &TARGETS {
        let outcome = target.run_damaged(count);
        let Outcome { taken, refused } = outcome;
        println!("{}: {taken} taken, {refused} refused", target.name);
        assert!(taken > count / 50 && refused > count / 50, "{}: {outcome:?} says little", target.name);
    }
}
