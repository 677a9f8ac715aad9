//! The oracle: what every subscriber's list must be, checked on every frame that reaches one.
//!
//! It applies frames with code of its own and compares every distinct list, at the revision it was stamped with, against
//! what the acknowledgements say the registry held at that revision. Frames that many subscribers get in the same state
//! are worked out once; for the others it is a look-up.

pub mod frame;

pub mod states;

pub mod transition;

pub mod oracle;

pub mod truth;
