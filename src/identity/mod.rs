//! Who is calling. Takes a request head, gives a tenant; knows nothing of models or upstreams.

pub mod api_key;
pub mod credential;
pub mod tenant;
