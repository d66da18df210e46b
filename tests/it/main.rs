mod admin_api;
mod embedded_broker;
