//! The targets of `engine/fuzz`, each run on a bounded number of damaged inputs that are always the same.

use std::path::Path;

use crate::fuzz::{Outcome, TARGETS};

#[test]
fn damaged_bytes_are_refused_or_mean_what_they_say() {
    let count = if cfg!(miri) { 5 } else { 3000 };
    for target in &TARGETS {
        let outcome = target.run_damaged(count);
        let Outcome { taken, refused } = outcome;
        println!("{}: {taken} taken, {refused} refused", target.name);
        assert!(taken > count / 50 && refused > count / 50, "{}: {outcome:?} says little", target.name);
    }
}

#[test]
#[cfg_attr(miri, ignore = "miri reads no files")]
fn what_a_fuzzer_has_found_is_found_no_more() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let found: usize = TARGETS.iter().map(|target| target.run_found(&fuzz)).sum();
    assert!(found >= 2, "only {found} inputs are kept in {}", fuzz.display());
}
