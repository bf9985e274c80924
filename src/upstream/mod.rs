//! What stands behind the gateway: accounts that pay, endpoints that answer.
//!
//! [`balance`] decides, from plain numbers; [`account`] and [`endpoint`] hold what is counted and
//! outlives a reload; [`governor`] learns how much an account takes; [`pool`] joins these with one
//! configuration. A [`lane`] holds places for a request, or lets it wait in its [`queue`], in the
//! order of [`fair_queue`]. [`clocks`] say when an attempt is late, [`retry`] what comes after one
//! that failed, within the upstream's [`budget`].
//!
//! What becomes of an attempt is told to what was [`chosen`] for it, and goes into the
//! [`condition`] of its account and endpoint: a [`gate`] lets them out and back, an [`outlier`] is
//! found beside its peers in a [`judgement`], and a [`breaker`] closes an endpoint for one model.
//!
//! [`discovery`] and [`probe`] are the edges that find addresses and ask after health; [`enveloped`]
//! reaches upstreams that wrap their answers. Nothing here knows bodies, and of tenants no more than
//! their names.

pub mod account;
pub mod addresses;
pub mod affinity;
pub mod balance;
pub mod breaker;
pub mod budget;
pub mod chosen;
pub mod clocks;
pub mod condition;
pub mod credit;
pub mod discovery;
pub mod endpoint;
pub mod enveloped;
pub mod fair_queue;
pub mod gate;
pub mod governor;
pub mod health;
pub mod judgement;
pub mod lane;
pub mod latency;
pub mod outlier;
pub mod pace;
pub mod peer;
pub mod pool;
pub mod probe;
pub mod queue;
pub mod registry;
pub mod retry;
pub mod signing;
pub mod silence;
pub mod transitions;
pub mod window;
