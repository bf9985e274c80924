//! Public model → route, and who may take it. Pure look-ups in tables made from the configuration.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::config::settings::{Deadlines, Degraded, FailureClass};
use crate::identity::directory::Identity;
use crate::request::edit::JsonText;
use crate::request::refusal::{Code, Family, Refusal};
use crate::request::surface::Surface;
use crate::upstream::pool::Lane;

/// What a public model name stands for, ready to be used.
pub struct Route {
    /// The public name.
    pub model: String,
    /// Best first; at least one.
    pub variants: Vec<Variant>,
    /// Body fields that the name fixes.
    pub set: Vec<(String, JsonText)>,
    /// Completion tokens that `set` allows, by the field that says so: `max_tokens`,
    /// `max_completion_tokens`, `max_output_tokens`.
    pub most_output: [Option<u64>; 3],
    /// Reserved for requests that name no maximum, until it is known what is usual.
    pub usual_output: u64,
    pub deadlines: Deadlines,
    /// Answered when nothing that serves the name is left.
    pub degraded: Option<Degraded>,
    /// How often a broken stream is gone on with elsewhere.
    pub resume: u32,
}

/// An upstream's model that serves a public name.
#[derive(Clone)]
pub struct Variant {
    pub lane: Arc<Lane>,
    /// After which failures of the variants before it this one is asked; `None` for any.
    pub on: Option<Arc<BTreeSet<FailureClass>>>,
}

impl Variant {
    /// Is it asked after a failure of this class? After none in any case: those before it could not
    /// be asked.
    pub fn follows(&self, failure: Option<FailureClass>) -> bool {
        match (&self.on, failure) {
            (Some(on), Some(class)) => on.contains(&class),
            (None, _) | (_, None) => true,
        }
    }
}

/// All routes, by public name.
#[derive(Default)]
pub struct Routes(HashMap<String, Arc<Route>>);

impl Routes {
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Self {
        Self(
            routes
                .into_iter()
                .map(|route| (route.model.clone(), Arc::new(route)))
                .collect(),
        )
    }

    /// The route for a tenant's request.
    ///
    /// # Errors
    /// 404 for a name that does not exist, 403 for one the tenant may not use, 400 for a surface
    /// that none of its upstreams has. A name the tenant may not use and one that does not exist
    /// are told apart on purpose: both are the operator's to mend, and names are no secret.
    pub fn find(
        &self,
        identity: &Identity,
        model: &str,
        surface: &Surface,
    ) -> Result<Arc<Route>, Refusal> {
        let Some(route) = self.0.get(model) else {
            return Err(Refusal::new(
                Code::ModelNotFound,
                "The model does not exist here. GET /v1/models lists the ones you may use.",
            )
            .about("model"));
        };
        if !identity.allows(model) {
            return Err(Refusal::new(
                Code::ModelNotAllowed,
                "Your key may not use this model. GET /v1/models lists the ones it may use.",
            )
            .about("model"));
        }
        if !route.variants.iter().any(|it| serves(&it.lane, surface)) {
            return Err(Refusal::new(
                Code::InvalidRequest,
                format!(
                    "The model is not offered on this path ({}).",
                    surface.name()
                ),
            )
            .about("model"));
        }
        Ok(route.clone())
    }

    /// The public names that are allowed, sorted.
    pub fn allowed(&self, allows: impl Fn(&str) -> bool) -> Vec<&str> {
        let mut names: Vec<_> = self
            .0
            .keys()
            .map(String::as_str)
            .filter(|name| allows(name))
            .collect();
        names.sort_unstable();
        names
    }
}

/// Has the lane's upstream this surface?
pub fn serves(lane: &Lane, surface: &Surface) -> bool {
    lane.pool
        .settings
        .surfaces
        .iter()
        .any(|name| name == surface.name())
}

/// May usage be asked for in a stream of this surface? Only the chat and completion streams of
/// OpenAI's format have `stream_options` (create-chat-completion page); the others report usage
/// unasked.
pub fn asks_for_usage(surface: &Surface) -> bool {
    matches!(surface, Surface::Chat { .. } | Surface::Completions { .. })
}

/// The answer to `GET /v1/models` or `/v1/models/{id}`.
///
/// # Errors
/// 404 if `id` is not among the tenant's models.
pub fn model_list(allowed: &[&str], id: Option<&str>, family: Family) -> Result<String, Refusal> {
    let entry = |name: &str| match family {
        Family::OpenAi => {
            serde_json::json!({"id": name, "object": "model", "created": 0, "owned_by": "tidegate"})
        }
        Family::Anthropic => serde_json::json!({
            "id": name, "type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z",
        }),
    };
    if let Some(id) = id {
        let known = allowed.iter().find(|name| **name == id);
        return known.map(|name| entry(name).to_string()).ok_or_else(|| {
            Refusal::new(
                Code::ModelNotFound,
                "The model does not exist here or is not open to your key.",
            )
            .about("model")
        });
    }
    let data: Vec<_> = allowed.iter().map(|name| entry(name)).collect();
    let list = match family {
        Family::OpenAi => serde_json::json!({"object": "list", "data": data}),
        Family::Anthropic => serde_json::json!({
            "data": data, "has_more": false, "first_id": allowed.first(), "last_id": allowed.last(),
        }),
    };
    Ok(list.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_list_speaks_the_callers_dialect() {
        let list: serde_json::Value =
            serde_json::from_str(&model_list(&["a", "b"], None, Family::OpenAi).unwrap()).unwrap();
        assert_eq!(list["data"][1]["id"], "b");
        let list: serde_json::Value =
            serde_json::from_str(&model_list(&["a"], None, Family::Anthropic).unwrap()).unwrap();
        assert_eq!(
            (list["data"][0]["type"].as_str(), list["last_id"].as_str()),
            (Some("model"), Some("a"))
        );
        assert_eq!(
            model_list(&["a"], Some("z"), Family::OpenAi)
                .unwrap_err()
                .code,
            Code::ModelNotFound
        );
        assert!(
            model_list(&["a"], Some("a"), Family::OpenAi)
                .unwrap()
                .contains("\"id\":\"a\"")
        );
    }
}
