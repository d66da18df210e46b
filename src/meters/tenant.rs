//! What is counted of one tenant.

use prometheus_client::metrics::counter::Counter;

use super::labels::{ByTenant, ByTenantOutcome};
use super::{Meters, handle};

/// Those that the config does not name. No tenant's name has parentheses.
const OTHER: &str = "(other)";

/// The handles of one tenant.
#[derive(Clone)]
pub struct TenantMeters {
    pub delivered: Counter,
    pub failed: Counter,
    /// Held because of its quota.
    pub held: Counter,
    pub dead: Counter,
}

impl Meters {
    /// Those that the config names have their own; callers make any number of others, which are
    /// counted together.
    pub fn of_tenant(&self, tenant: &str, is_named: bool) -> TenantMeters {
        let tenant = match is_named {
            true => tenant,
            false => OTHER,
        };
        let by = ByTenant {
            tenant: tenant.to_owned(),
        };
        let outcome = |outcome| ByTenantOutcome {
            tenant: tenant.to_owned(),
            outcome,
        };
        TenantMeters {
            delivered: handle(&self.tenant_attempts, &outcome("delivered")),
            failed: handle(&self.tenant_attempts, &outcome("failed")),
            held: handle(&self.tenant_held, &by),
            dead: handle(&self.tenant_dead, &by),
        }
    }
}
