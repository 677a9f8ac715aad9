#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = slotcast_net_fuzz::wire::settings_are_taken_or_refused(bytes);
});
