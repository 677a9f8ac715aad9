//! Where connections come from: loopback addresses enough that the kernel finds a free port at once.
//!
//! It looks for one by trial, so an address whose range of 28,000 is half full, also with connections of an earlier run in
//! `TIME_WAIT`, makes each further connect slower than everything else that it costs.

use std::net::{IpAddr, Ipv4Addr};

const CLIENTS_PER_ADDRESS: u32 = 4_000;

/// The address that this process connects its client `client` from. Other processes use others.
pub fn source(client: u32) -> IpAddr {
    let process = std::process::id();
    let part = |number: u32, least: u8| least + (number % 250) as u8;
    Ipv4Addr::new(127, part(process / 250, 1), part(process, 1), part(client / CLIENTS_PER_ADDRESS, 2)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_on_loopback_and_serves_few() {
        let mut clients = std::collections::HashMap::new();
        for client in 0..200_000 {
            let address = source(client);
            assert!(address.is_loopback());
            *clients.entry(address).or_insert(0) += 1;
        }
        assert!(clients.values().all(|count| *count <= CLIENTS_PER_ADDRESS));
    }
}
