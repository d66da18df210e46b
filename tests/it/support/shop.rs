//! The services of a shop: their exchange on RabbitMQ, and the bridge's config beside it.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};

use super::{SECRET, unique};

/// A config with RabbitMQ as the broker, one source bound to `exchange`, and these subscriptions.
pub fn rabbitmq_config(amqp: &str, group: &str, exchange: &str, subscriptions: &str) -> String {
    format!(
        "group: {group}
data_dir: '{{data}}'
admin: {{ listen: '{{admin}}' }}
delivery: {{ allow_http: true, allow_networks: [127.0.0.0/8] }}
brokers:
  shop: {{ rabbitmq: {{ urls: ['{amqp}'] }}, tiers: [1s, 2s, 5s] }}
sources:
  orders: {{ broker: shop, queue: {group}.orders, bind: [{{ exchange: {exchange}, key: 'orders.#' }}] }}
subscriptions:
{subscriptions}"
    )
}

/// A subscription to `url` with a fast retry schedule.
pub fn subscription(name: &str, topics: &str, url: &str, more: &str) -> String {
    format!(
        "  {name}: {{ topics: ['{topics}'], endpoint: {{ url: '{url}', secret: '{SECRET}' }}, retry: {{ schedule: [1s, 1s, 1s], jitter: 0 }}{more} }}\n"
    )
}

/// A topic exchange that services publish to, as it is before hookbridge comes.
pub struct Shop {
    pub channel: Channel,
    pub exchange: String,
    _connection: Connection,
}

impl Shop {
    pub async fn open(amqp: &str) -> Self {
        let exchange = unique("shop.events");
        let shop = Self::join(amqp, &exchange).await;
        shop.expect("rabbitmq is there")
    }

    /// Opens it with an exchange that may be there already.
    pub async fn join(amqp: &str, exchange: &str) -> lapin::Result<Self> {
        let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        channel
            .exchange_declare(
                exchange.into(),
                ExchangeKind::Topic,
                options,
                FieldTable::default(),
            )
            .await?;
        Ok(Self {
            channel,
            exchange: exchange.to_owned(),
            _connection: connection,
        })
    }

    pub async fn publish(&self, key: &str, body: &[u8], properties: BasicProperties) {
        self.channel
            .basic_publish(
                self.exchange.as_str().into(),
                key.into(),
                BasicPublishOptions::default(),
                body,
                properties,
            )
            .await
            .expect("published")
            .await
            .expect("confirmed");
    }
}
