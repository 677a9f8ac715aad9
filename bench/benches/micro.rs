//! The cases of the library at their large size, under criterion.

use criterion::{Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("micro");
    for case in bench::CASES {
        let mut prepared = (case.prepare)(case.large);
        group.throughput(Throughput::Elements(prepared.operations));
        group.bench_function(case.name, |bencher| bencher.iter(|| prepared.run()));
    }
    group.finish();
    criterion.final_summary();
}
