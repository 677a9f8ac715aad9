//! What is fed with damaged bytes: the wire and the roles. `cargo fuzz` runs these, and so does the test binary of net, a
//! bounded number of times.

pub mod wire;
