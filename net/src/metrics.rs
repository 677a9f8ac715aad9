//! What the metrics of all roles share: how they are registered, and the labels that name reasons.

use prometheus_client::{
    encoding::EncodeLabelSet,
    registry::{Metric, Registry},
};
use slotcast_engine::error::Refusal;

use crate::wire::ErrorCode;

/// A metric that is served under `name` from now on.
pub fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    registered_as(registry, name, help, M::default())
}

/// The same for one that has no usual form, a histogram for example.
pub fn registered_as<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// A closed set of reasons.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Reason {
    reason: &'static str,
}

impl From<ErrorCode> for Reason {
    fn from(code: ErrorCode) -> Self {
        Reason { reason: code.label() }
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        Reason { reason: refusal.label() }
    }
}
