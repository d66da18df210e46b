mod admin_api;
mod embedded_broker;
mod embedded_crash;
