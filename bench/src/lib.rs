//! Cases that are measured: each a plain function with a size, so that a test runs it small and a benchmark runs it large.
//!
//! A case is prepared once and run any number of times. Every run returns the same check value, made of what the case
//! computed: a case that stops doing its work fails a test before it shines in a table.

pub mod formats;

pub mod store;

pub mod sketch;

pub mod measure;

pub mod peers;

pub mod crash;

pub mod fixture;

pub mod memory;

pub mod meta;

pub mod idle;

pub mod population;

pub mod capacity;

pub mod restart;

pub mod simulate;

/// A case, ready to run.
pub struct Prepared {
    /// Operations that one run does.
    pub operations: u64,
    run: Box<dyn FnMut() -> u64>,
}

impl Prepared {
    fn new(operations: usize, run: impl FnMut() -> u64 + 'static) -> Self {
        Self { operations: operations as u64, run: Box::new(run) }
    }

    /// Runs it once and returns its check value.
    pub fn run(&mut self) -> u64 {
        (self.run)()
    }
}

/// A case by name, with the size at which it is measured.
pub struct Case {
    /// What is done once per operation.
    pub name: &'static str,
    /// The size of a measurement; what it counts is said at [`Case::prepare`].
    pub large: usize,
    /// The size at which tests run it, and the check value that it has then.
    pub smoke: (usize, u64),
    /// Prepares the case at a size.
    pub prepare: fn(usize) -> Prepared,
}

/// Every case, in the order in which a change travels.
pub const CASES: &[Case] = &[
    Case {
        name: "slot function",
        large: 10_000,
        smoke: (64, 0x54d8_dc3a_9249_1843),
        prepare: formats::slot_function,
    },
    Case {
        name: "encode a record, 128 B",
        large: 1_000,
        smoke: (8, 0x462b_5235_6a52_8e77),
        prepare: formats::encode,
    },
    Case {
        name: "validate a record, 128 B",
        large: 1_000,
        smoke: (8, 0xef88_e5cb_aa27_7c66),
        prepare: formats::validate,
    },
    Case {
        name: "validate a record, 4 KiB",
        large: 1_000,
        smoke: (8, 0xef88_e5cb_aa27_7c66),
        prepare: formats::validate_large,
    },
    // The frame codec of the wire formats comes here.
    Case { name: "register", large: 100_000, smoke: (300, 0x9801_b032_6308_636e), prepare: store::register },
    Case { name: "update", large: 100_000, smoke: (300, 0x9801_b032_6308_636e), prepare: store::update },
    Case {
        name: "renew with equal payload",
        large: 100_000,
        smoke: (300, 0x9801_b032_6308_636e),
        prepare: store::renew,
    },
    Case {
        name: "diff of 1 changed in 1",
        large: 1,
        smoke: (1, 0x2ebb_bc76_4f26_9e5d),
        prepare: store::diff,
    },
    Case {
        name: "diff of 1 changed in 100",
        large: 100,
        smoke: (100, 0x2ebb_bc76_4f26_9e5d),
        prepare: store::diff,
    },
    Case {
        name: "diff of 1 changed in 7,000",
        large: 7_000,
        smoke: (700, 0x2ebb_bc76_4f26_9e5d),
        prepare: store::diff,
    },
    Case {
        name: "snapshot of 7,000",
        large: 7_000,
        smoke: (70, 0xff28_e01f_7048_ce9a),
        prepare: store::snapshot,
    },
    Case {
        name: "turn: change 1 of 100, 370 readers",
        large: 370,
        smoke: (3, 0x7a06_66cd_a94a_2222),
        prepare: store::turn,
    },
    Case {
        name: "turn: change 1,000 data ids, 1 reader",
        large: 1_000,
        smoke: (10, 0xe9fd_6049_d65a_f21e),
        prepare: store::turn_wide,
    },
    Case {
        name: "compare two digests, per data id",
        large: 100_000,
        smoke: (50, 0xa706_dd2f_4d19_7e6f),
        prepare: store::compare,
    },
    Case {
        name: "heartbeat, 1,024 slots",
        large: 1_024,
        smoke: (16, 0x1d0b_14e4_db01_8fed),
        prepare: store::heartbeat,
    },
    Case {
        name: "count a change, known data id",
        large: 100_000,
        smoke: (100, 0x9cec_27be_ebf9_5815),
        prepare: sketch::count_known,
    },
    Case {
        name: "count a change, too many data ids",
        large: 100_000,
        smoke: (2000, 0x6634_c681_ab18_9b3d),
        prepare: sketch::count_unknown,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_its_check_value_every_time() {
        for case in CASES {
            let (size, check) = case.smoke;
            let mut prepared = (case.prepare)(size);
            assert!(prepared.operations > 0);
            for run in 1..=3 {
                let got = prepared.run();
                println!("{}: {got:#018x}", case.name);
                assert_eq!(got, check, "{} at size {size}, run {run}", case.name);
            }
        }
    }
}
