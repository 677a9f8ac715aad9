#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = slotcast_net_fuzz::wire::the_control_plane_survives_its_peers(bytes);
});
