//! The JSON Schema of the file, for editors and for our own walk: one source for what is allowed,
//! what is shown while typing, and what is told afterwards.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::file::File;

/// The schema (draft 2020-12), with descriptions and defaults.
pub fn value() -> Value {
    SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<File>()
        .to_value()
}

/// The same as text for a file that editors read.
pub fn text() -> String {
    format!("{:#}\n", value())
}
