mod kafka_group;
mod kafka_park;
mod kafka_support;
mod kafka_take;

fn main() {}
