//! The description of the API, with what a subscription is by the keys of the config.

use crate::admin;
use crate::config::schema;

/// The OpenAPI document as it is served and kept in the repository.
pub fn openapi() -> String {
    let document = admin::document(schema::registered(admin::SUBSCRIPTION));
    // Objects with text keys can be written.
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}
