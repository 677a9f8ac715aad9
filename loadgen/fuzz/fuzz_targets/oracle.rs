#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = loadgen_fuzz::oracle(bytes);
});
