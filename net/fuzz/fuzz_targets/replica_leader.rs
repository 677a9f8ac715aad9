#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = slotcast_net_fuzz::wire::a_leader_survives_its_followers(bytes);
});
