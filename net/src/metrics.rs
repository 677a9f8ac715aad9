//! What the metrics of all roles share: the labels that name reasons.

use prometheus_client::encoding::EncodeLabelSet;
use slotcast_engine::error::Refusal;

use crate::wire::ErrorCode;

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
