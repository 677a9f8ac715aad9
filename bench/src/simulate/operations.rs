//! What clients are asked to do.

use slotcast_engine::id::RegisterId;
use slotcast_net::client::{ClientState, Registration};

use super::{hosts::Actor, oracle::Oracle, rng::Rng, world::World};

/// Data ids.
pub const DATUMS: usize = 6;

impl World {
    /// One operation of the plan.
    pub(super) fn operate(&mut self, number: usize) {
        let operation = self.plan.operations[number];
        let mut rng = Rng::of(&[self.plan.seed, 3, operation.number]);
        let host = self.plan.layout.clients().start + rng.below(self.plan.layout.clients);
        if rng.chance(4) {
            self.drop_client(host);
        } else {
            self.operate_on(host, &mut rng);
        }
    }

    fn drop_client(&mut self, host: usize) {
        if let Some(Actor::Client(serial, client)) = &mut self.actors[host] {
            self.reached.client_drops += 1;
            client.drop_connection();
            self.oracle.say(None, || format!("client {serial} drops its connection"));
            self.net.wake(host, self.net.now);
        }
    }

    /// Anything that the client of a host can do now.
    pub(super) fn operate_on(&mut self, host: usize, rng: &mut Rng) {
        let Some(Actor::Client(serial, client)) = &mut self.actors[host] else { return };
        if self.leaving.contains(serial) {
            return;
        }
        self.reached.operations += 1;
        if self.plan.sizes.on_disk && rng.chance(15) {
            operate_for_good(client, &mut self.oracle, *serial, rng);
            self.net.wake(host, self.net.now);
            return;
        }
        let (oracle, serial) = (&mut self.oracle, *serial);
        let datum = rng.below(DATUMS);
        let id = oracle.datums[datum].clone();
        let live: Vec<RegisterId> = of(oracle, serial, true);
        let gone: Vec<RegisterId> = of(oracle, serial, false);
        match rng.below(100) {
            0..22 if live.len() < 4 => {
                let payload = payload(rng, serial);
                let registration =
                    client.publish(&id, &format!("host-{serial}"), "z", &payload).expect("small enough");
                oracle.published(serial, registration, datum, payload);
            }
            22..42 if !live.is_empty() => {
                let register = live[rng.below(live.len())];
                let payload = payload(rng, serial);
                publish_again(client, oracle, serial, register, payload);
            }
            42..50 if !live.is_empty() => {
                let register = live[rng.below(live.len())];
                let payload = oracle.regs[&register].contents.last().cloned().unwrap_or_default();
                publish_again(client, oracle, serial, register, payload);
            }
            50..66 if !live.is_empty() => {
                let register = live[rng.below(live.len())];
                client.unpublish(oracle.regs[&register].registration);
                oracle.withdrew(register);
            }
            66..72 if !gone.is_empty() => {
                let register = gone[rng.below(gone.len())];
                let payload = payload(rng, serial);
                publish_again(client, oracle, serial, register, payload);
            }
            72..92 if !oracle.is_subscribed(serial, datum) => {
                if client.is_up() {
                    self.rewanted.insert(host);
                }
                client.subscribe(&id);
                oracle.subscribed(serial, datum);
            }
            92..100 if oracle.is_subscribed(serial, datum) => {
                client.unsubscribe(&id);
                oracle.unsubscribed(serial, datum);
            }
            _ => {}
        }
        self.net.wake(host, self.net.now);
    }
}

/// A client's registrations, those it wants or those it has withdrawn.
fn of(oracle: &Oracle, client: usize, wanted: bool) -> Vec<RegisterId> {
    let regs = oracle.regs.values().filter(|reg| reg.client == client && !reg.is_persistent());
    let regs = regs.filter(|reg| reg.wanted == wanted);
    regs.map(|reg| reg.registration.register).collect()
}

/// Something with a registration that stays without its client.
fn operate_for_good(client: &mut ClientState, oracle: &mut Oracle, serial: usize, rng: &mut Rng) {
    let own = oracle.regs.values().filter(|reg| reg.client == serial && reg.is_persistent());
    let own: Vec<RegisterId> = own.map(|reg| reg.registration.register).collect();
    let is_new = own.len() < 2 || own.len() < 5 && rng.chance(30);
    let register = if is_new { RegisterId(rng.number() | 1) } else { own[rng.below(own.len())] };
    let known = oracle.regs.get(&register);
    let datum = known.map_or_else(|| rng.below(DATUMS), |reg| reg.datum);
    let version = known.map_or(1, |reg| reg.version + 1);
    let id = oracle.datums[datum].clone();
    if known.is_some_and(|reg| reg.wanted) && rng.chance(40) {
        client.remove_persistent(&id, register, version);
        oracle.withdrew(register);
        if let Some(reg) = oracle.regs.get_mut(&register) {
            reg.version = version;
        }
        return;
    }
    let payload = payload(rng, serial);
    let registration = client
        .publish_persistent(&id, (register, version), &format!("host-{serial}"), "z", &payload)
        .expect("small enough");
    oracle.published_for_good(serial, registration, datum, (payload, version));
}

fn publish_again(
    client: &mut ClientState,
    oracle: &mut Oracle,
    serial: usize,
    register: RegisterId,
    payload: Vec<u8>,
) {
    let reg = &oracle.regs[&register];
    let (registration, datum): (Registration, usize) = (reg.registration, reg.datum);
    let id = oracle.datums[datum].clone();
    client.publish_as(registration, &id, &format!("host-{serial}"), "z", &payload).expect("small enough");
    oracle.published(serial, registration, datum, payload);
}

/// Unique, and of a size that sometimes fills a window.
fn payload(rng: &mut Rng, serial: usize) -> Vec<u8> {
    let mut payload = format!("{serial}#{:x}", rng.number() >> 16).into_bytes();
    let size = if rng.chance(15) { rng.range(100, 1500) as usize } else { 24 };
    payload.resize(size.max(payload.len()), b'.');
    payload
}
