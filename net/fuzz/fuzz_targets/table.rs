#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = slotcast_net_fuzz::wire::a_table_is_read_or_refused(bytes);
});
