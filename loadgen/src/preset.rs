//! The named workloads of `run`, and how they shrink when fewer clients are asked for.

use clap::ValueEnum;

/// A named workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Preset {
    /// 100,000 clients, 2,000 services, 220 changes a second: 13.2 million deliveries a minute.
    Headline,
    /// 100,000 clients with 100 subscriptions each, 2,200 changes a second: 132 million deliveries a minute.
    Surge,
    /// As headline with 10 changes a second: what one change costs in time.
    Idle,
    /// One service with very many instances, one change every 2 seconds: what one change costs in bytes.
    Hot,
}

/// The numbers of a preset.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Shape {
    /// Clients.
    pub clients: u32,
    /// Services.
    pub services: u32,
    /// Subscriptions of each client.
    pub subscriptions_per_client: u32,
    /// Publishers in all.
    pub publishers: u32,
    /// Planned changes per second.
    pub changes_per_sec: f64,
}

/// What the user set himself.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Wishes {
    /// Clients.
    pub clients: Option<u32>,
    /// Services.
    pub services: Option<u32>,
    /// Subscriptions of each client.
    pub subscriptions_per_client: Option<u32>,
    /// Publishers in all.
    pub publishers: Option<u32>,
    /// Planned changes per second.
    pub changes_per_sec: Option<f64>,
}

/// Clients up to which `hot` has 7,000 instances.
const HOT_CLIENTS: u32 = 20_000;

impl Preset {
    /// The preset as it stands.
    pub fn shape(self) -> Shape {
        let (clients, services, subscriptions_per_client, publishers, changes_per_sec) = match self {
            Preset::Headline => (100_000, 2_000, 20, 20_000, 220.0),
            Preset::Surge => (100_000, 10_000, 100, 50_000, 2_200.0),
            Preset::Idle => (100_000, 2_000, 20, 20_000, 10.0),
            Preset::Hot => (HOT_CLIENTS, 1, 1, 7_000, 0.5),
        };
        Shape { clients, services, subscriptions_per_client, publishers, changes_per_sec }
    }

    /// The preset with the user's numbers in it. Subscriptions per client, services and changes per second stay unless
    /// given; publishers shrink to one per client. Returns what was scaled, in words.
    pub fn scaled(self, wishes: &Wishes) -> (Shape, Vec<String>) {
        let mut shape = self.shape();
        let mut notes = Vec::new();
        if let Some(clients) = wishes.clients.filter(|&clients| clients != shape.clients) {
            notes.push(format!("clients {} instead of {}", clients, shape.clients));
            shape.clients = clients;
        }
        if self == Preset::Hot {
            shape.publishers = if shape.clients > HOT_CLIENTS { 1_000 } else { 7_000 };
        } else if wishes.publishers.is_none() && shape.publishers > shape.clients {
            notes.push(format!(
                "publishers {} instead of {}: one per client",
                shape.clients, shape.publishers
            ));
            shape.publishers = shape.clients;
        }
        let mut wish = |name: &str, slot: &mut u32, wished: Option<u32>| {
            if let Some(wished) = wished.filter(|wished| wished != slot) {
                notes.push(format!("{name} {wished} instead of {slot}"));
                *slot = wished;
            }
        };
        wish("services", &mut shape.services, wishes.services);
        wish(
            "subscriptions per client",
            &mut shape.subscriptions_per_client,
            wishes.subscriptions_per_client,
        );
        wish("publishers", &mut shape.publishers, wishes.publishers);
        if let Some(rate) = wishes.changes_per_sec.filter(|&rate| rate != shape.changes_per_sec) {
            notes.push(format!("{rate} changes/s instead of {}", shape.changes_per_sec));
            shape.changes_per_sec = rate;
        }
        if shape.subscriptions_per_client > shape.services {
            notes.push(format!("subscriptions per client {}: there are no more services", shape.services));
            shape.subscriptions_per_client = shape.services;
        }
        (shape, notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_clients(preset: Preset, clients: u32) -> Shape {
        preset.scaled(&Wishes { clients: Some(clients), ..Wishes::default() }).0
    }

    #[test]
    fn unscaled_presets_plan_the_deliveries_they_are_known_for() {
        let per_minute = |preset: Preset| {
            let shape = preset.shape();
            let subscribers =
                f64::from(shape.clients * shape.subscriptions_per_client) / f64::from(shape.services);
            shape.changes_per_sec * 60.0 * subscribers
        };
        assert_eq!(per_minute(Preset::Headline), 13.2e6);
        assert_eq!(per_minute(Preset::Surge), 132e6);
        assert_eq!(per_minute(Preset::Idle), 0.6e6);
        assert!(Preset::Headline.scaled(&Wishes::default()).1.is_empty());
    }

    #[test]
    fn fewer_clients_keep_everything_but_publishers() {
        let shape = with_clients(Preset::Headline, 10_000);
        assert_eq!((shape.services, shape.subscriptions_per_client, shape.publishers), (2_000, 20, 10_000));
        assert_eq!(shape.changes_per_sec, 220.0);
        assert_eq!(with_clients(Preset::Headline, 50_000).publishers, 20_000);
        assert_eq!(with_clients(Preset::Hot, 5_000).publishers, 7_000);
        assert_eq!(with_clients(Preset::Hot, 100_000).publishers, 1_000);
    }

    #[test]
    fn wishes_win_and_are_told() {
        let wishes = Wishes {
            publishers: Some(30),
            services: Some(5),
            changes_per_sec: Some(1.5),
            ..Wishes::default()
        };
        let (shape, notes) = Preset::Headline.scaled(&wishes);
        assert_eq!((shape.publishers, shape.services, shape.subscriptions_per_client), (30, 5, 5));
        assert_eq!(notes.len(), 4, "{notes:?}");
    }
}
