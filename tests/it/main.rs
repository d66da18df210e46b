mod embedded_broker;
