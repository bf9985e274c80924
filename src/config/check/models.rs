//! The rules of `models`: every name ends at upstream models, by at most one alias.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Check;
use super::resilience::class_set;
use crate::config::file::{self, File};
use crate::config::mistake::{KeyPath, quoted};
use crate::config::nearest::hint;
use crate::config::settings::{Degraded, Model, UpstreamId, Variant};

/// Body fields that the gateway itself reads or writes; a `set` would work against it.
const OWN_FIELDS: [&str; 4] = ["model", "stream", "messages", "stream_options"];

/// Longest name of a model, ours or an upstream's, in bytes.
const MAX_NAME: usize = 128;

impl Check<'_, '_> {
    pub(super) fn models(&mut self, file: &File) -> HashMap<String, Arc<Model>> {
        let path = KeyPath::Root.key("models");
        let used: HashSet<&str> = file
            .tenants
            .iter()
            .flat_map(|tenant| &tenant.models)
            .map(String::as_str)
            .collect();
        let mut models = HashMap::new();
        for (name, written) in &file.models {
            let path = path.key(name);
            if !is_name(name) {
                self.report.mistake(
                    path,
                    quoted(name),
                    "a model's name is 1 to 128 of A-Z a-z 0-9 . _ : / -",
                );
            }
            if !file.tenants.is_empty() && !used.contains("*") && !used.contains(name.as_str()) {
                self.report.warning(
                    path,
                    "no tenant may use this model",
                    "add it to a tenant's `models`",
                );
            }
            let model = self.model(name, written, path, file);
            models.insert(name.clone(), Arc::new(model));
        }
        models
    }

    fn model(
        &mut self,
        name: &str,
        written: &file::Model,
        path: KeyPath<'_>,
        file: &File,
    ) -> Model {
        let set = self.set(written, path);
        let variants = self.variants(written, path, file);
        let target = self.alias(written, path, file);
        if let Some(resume) = written.resume {
            let variants = target.unwrap_or(written).variants.as_deref();
            let variants = variants.unwrap_or_default();
            self.resume(resume, variants, path.key("resume"));
        }
        let nothing = file::Model::default();
        let inherited = target.unwrap_or(&nothing);
        let degraded = match &written.degraded {
            Some(own) => Some(self.degraded(own, path.key("degraded"))),
            None => inherited.degraded.as_ref().map(Degraded::from),
        };
        let usual = written.usual_output_tokens;
        let usual = usual.or(inherited.usual_output_tokens);
        Model {
            name: name.to_owned(),
            variants: target.map_or(variants, plain_variants),
            set: inherit(set, inherited),
            usual_output_tokens: usual.unwrap_or(file::USUAL_OUTPUT_TOKENS),
            deadlines: self.deadlines(
                &written.deadlines,
                &inherited.deadlines,
                path.key("deadlines"),
            ),
            degraded,
            resume: written.resume.or(inherited.resume).unwrap_or(0),
        }
    }

    fn set(
        &mut self,
        written: &file::Model,
        path: KeyPath<'_>,
    ) -> Vec<(String, serde_json::Value)> {
        let path = path.key("set");
        for field in written
            .set
            .keys()
            .filter(|field| OWN_FIELDS.contains(&field.as_str()))
        {
            self.report.mistake(
                path.key(field),
                "a field that may not be set",
                format!("the gateway itself needs {}", OWN_FIELDS.join(", ")),
            );
        }
        written
            .set
            .iter()
            .map(|(field, value)| (field.clone(), value.clone()))
            .collect()
    }

    fn variants(&mut self, written: &file::Model, path: KeyPath<'_>, file: &File) -> Vec<Variant> {
        let Some(variants) = &written.variants else {
            if written.alias.is_none() {
                self.report.mistake(
                    path,
                    "neither `variants` nor `alias`",
                    "one of the two says what serves this name",
                );
            }
            return Vec::new();
        };
        let path = path.key("variants");
        if variants.is_empty() {
            self.report
                .mistake(path, "an empty list", "at least one entry is needed");
        }
        let mut seen = HashMap::new();
        for (index, variant) in variants.iter().enumerate() {
            let path = path.index(index);
            self.known_upstream(&variant.upstream, path.key("upstream"), file);
            if !is_upstream_name(&variant.model) {
                self.report.mistake(
                    path.key("model"),
                    quoted(&variant.model),
                    "expected 1 to 128 printable characters without spaces",
                );
            }
            self.variant_classes(index, variant, &file.retry, path);
            let shown = format!(
                "{} of {}",
                quoted(&variant.model),
                quoted(&variant.upstream)
            );
            self.unique(&mut seen, (&variant.upstream, &variant.model), &shown, path);
        }
        plain_variants(written)
    }

    /// The model that an alias stands for, if it is one with variants.
    fn alias<'f>(
        &mut self,
        written: &file::Model,
        path: KeyPath<'_>,
        file: &'f File,
    ) -> Option<&'f file::Model> {
        let alias = written.alias.as_ref()?;
        let path = path.key("alias");
        if written.variants.is_some() {
            self.report.mistake(
                path,
                "`alias` beside `variants`",
                "only one of the two says what serves this name",
            );
            return None;
        }
        let Some(target) = file.models.get(alias) else {
            if !self.report.is_full() {
                let hint = hint(alias, file.models.keys().map(String::as_str));
                let found = format!("no model has the name {}", quoted(alias));
                self.report.mistake(
                    path,
                    found,
                    format!("names of `models` with variants may stand here{hint}"),
                );
            }
            return None;
        };
        if target.alias.is_some() {
            let found = format!("{} is an alias itself", quoted(alias));
            self.report.mistake(
                path,
                found,
                "an alias names a model with variants, so that nobody has to follow a chain",
            );
            return None;
        }
        Some(target)
    }
}

fn plain_variants(written: &file::Model) -> Vec<Variant> {
    let variants = written.variants.iter().flatten();
    variants
        .map(|v| Variant {
            upstream: UpstreamId::new(&v.upstream),
            model: v.model.clone(),
            on: v.on.as_deref().map(class_set),
        })
        .collect()
}

/// What an alias sets, with what its target sets besides: the alias has the last word on a field.
fn inherit(
    own: Vec<(String, serde_json::Value)>,
    target: &file::Model,
) -> Vec<(String, serde_json::Value)> {
    let own_fields: HashSet<String> = own.iter().map(|(field, _)| field.clone()).collect();
    let inherited = target
        .set
        .iter()
        .filter(|(field, _)| !own_fields.contains(*field));
    inherited
        .map(|(field, value)| (field.clone(), value.clone()))
        .chain(own)
        .collect()
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed)
}

fn is_upstream_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}
