//! The request as it came and as it may go on: what surface, how framed, what it says, what is
//! changed in it, and how a "no" is worded.

pub mod body;
pub mod continuation;
pub mod deadline;
pub mod degraded;
pub mod edit;
pub mod forward;
pub mod head;
pub mod rate;
pub mod refusal;
pub mod scan;
pub mod stand_in;
pub mod surface;
