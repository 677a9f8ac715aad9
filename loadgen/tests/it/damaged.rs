//! The targets of `loadgen/fuzz`, each run on a bounded number of damaged inputs.

use crate::fuzz::{TARGETS, mutate::Outcome};

#[test]
fn damaged_frames_and_traces_are_refused_or_mean_what_they_say() {
    let count = 3000;
    for target in &TARGETS {
        let outcome = target.run_damaged(count);
        let Outcome { taken, refused } = outcome;
        println!("{}: {taken} taken, {refused} refused", target.name);
        assert!(taken > count / 50 && refused > count / 50, "{}: {outcome:?} says little", target.name);
    }
}
