//! Who subscribes to what: every service gets as many subscribers as every other, as exactly as possible.
//!
//! Clients take their subscriptions from a row of shuffled rounds over all services, one after the other. A round that
//! begins in the middle of a client is rearranged so that this client gets no service twice.

use std::ops::Range;

use crate::random::Random;

const PURPOSE: u64 = 1;

/// Subscriptions of a range of clients: services in rising order per client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscriptions {
    first: u32,
    starts: Vec<u32>,
    services: Vec<u32>,
}

impl Subscriptions {
    /// Rows for the clients from `first` on.
    pub fn starting_at(first: u32) -> Self {
        Self { first, starts: vec![0], services: Vec::new() }
    }

    /// Appends the next client's services.
    pub fn push(&mut self, services: impl IntoIterator<Item = u32>) {
        let start = self.services.len();
        self.services.extend(services);
        self.services[start..].sort_unstable();
        self.starts.push(self.services.len() as u32);
    }

    /// The clients in here.
    pub fn clients(&self) -> Range<u32> {
        self.first..self.first + self.starts.len().saturating_sub(1) as u32
    }

    /// Where the subscriptions of `client` lie among all in here.
    pub fn span(&self, client: u32) -> Range<usize> {
        let row = (client - self.first) as usize;
        self.starts[row] as usize..self.starts[row + 1] as usize
    }

    /// The services of `client`, in rising order.
    pub fn of(&self, client: u32) -> &[u32] {
        &self.services[self.span(client)]
    }

    /// All services of all clients, one row behind the other.
    pub fn all(&self) -> &[u32] {
        &self.services
    }

    /// Draws `per_client` distinct services out of `services` for each of `clients`, keeping those of `keep`, and counts
    /// the subscribers of every service over all clients.
    pub fn draw(
        (clients, services, per_client): (u32, u32, u32),
        seed: u64,
        keep: Range<u32>,
    ) -> (Self, Vec<u32>) {
        let per_client = per_client.min(services) as usize;
        let mut random = Random::new(seed, PURPOSE);
        let mut rows = Self::starting_at(keep.start);
        let mut subscribers = vec![0; services as usize];
        let mut round: Vec<u32> = Vec::new();
        let mut used = 0;
        let mut chosen = Vec::with_capacity(per_client);
        for client in 0..clients {
            chosen.clear();
            while chosen.len() < per_client {
                if used == round.len() {
                    round = random.permutation(services as usize);
                    used = 0;
                    keep_distinct(&mut round, &chosen, per_client - chosen.len());
                }
                let take = (per_client - chosen.len()).min(round.len() - used);
                chosen.extend_from_slice(&round[used..used + take]);
                used += take;
            }
            chosen.iter().for_each(|&service| subscribers[service as usize] += 1);
            if keep.contains(&client) {
                rows.push(chosen.iter().copied());
            }
        }
        (rows, subscribers)
    }
}

/// Moves services that are in `chosen` out of the first `wanted` of `round`.
fn keep_distinct(round: &mut [u32], chosen: &[u32], wanted: usize) {
    let mut next = wanted;
    for place in 0..wanted.min(round.len()) {
        while chosen.contains(&round[place]) && next < round.len() {
            round.swap(place, next);
            next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_gets_the_same_number_of_subscribers_and_no_client_one_twice() {
        for (clients, services, per_client) in
            [(1000, 200, 20), (999, 37, 5), (50, 7, 7), (10, 3, 9), (5, 100, 3)]
        {
            let (rows, subscribers) = Subscriptions::draw((clients, services, per_client), 7, 0..clients);
            for client in rows.clients() {
                let of = rows.of(client);
                assert_eq!(of.len() as u32, per_client.min(services));
                assert!(of.windows(2).all(|pair| pair[0] < pair[1]), "{of:?}");
            }
            let (least, most) = (subscribers.iter().min().unwrap(), subscribers.iter().max().unwrap());
            assert!(most - least <= 1, "{clients} {services} {per_client}: {least}..{most}");
        }
    }

    #[test]
    fn a_part_holds_the_same_rows_as_the_whole() {
        let (whole, all) = Subscriptions::draw((300, 41, 6), 9, 0..300);
        let (part, counted) = Subscriptions::draw((300, 41, 6), 9, 100..200);
        assert_eq!(all, counted);
        assert!((100..200).all(|client| whole.of(client) == part.of(client)));
        assert_eq!(part.clients(), 100..200);
    }
}
