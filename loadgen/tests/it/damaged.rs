//! The targets of `loadgen/fuzz`, each run on a bounded number of damaged inputs.

use std::path::Path;

use crate::fuzz::{TARGETS, mutate::Outcome};

#[test]
fn damaged_frames_and_traces_are_refused_or_mean_what_they_say() {
    let count = 3000;
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for target in &TARGETS {
        let outcome = target.run_damaged(count);
        let Outcome { taken, refused } = outcome;
        let found = target.run_found(&fuzz);
        println!("{}: {taken} taken, {refused} refused, {found} found before", target.name);
        assert!(taken > count / 50 && refused > count / 50, "{}: {outcome:?} says little", target.name);
    }
}
