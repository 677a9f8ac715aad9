#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = slotcast_engine_fuzz::directory_is_read_or_refused(bytes);
});
