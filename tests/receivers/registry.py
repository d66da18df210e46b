"""A schema registry, and messages that its users would write.

Avro is written by fastavro and Protobuf by Google's own library, in Confluent's wire format. The first line
printed is the port and, as JSON, the messages in base64. With PORT in the environment it listens there, so that
one that was killed can come back. GET /results says how often each path was asked for; POST /schemas adds the
schema that was missing.
"""

import base64
import datetime
import decimal
import io
import json
import os
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import fastavro
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

AUTHORIZATION = "Basic " + base64.b64encode(b"bridge:registry-password").decode()
AVRO, PROTOBUF, JSON_SCHEMA, MISSING = 1, 2, 3, 99

CUSTOMER_AVRO = {
    "type": "record",
    "name": "shop.Customer",
    "fields": [{"name": "name", "type": "string"}, {"name": "card", "type": ["null", "string"]}],
}
ORDER_AVRO = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {"name": "total", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "customer", "type": "shop.Customer"},
        {"name": "made", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "at", "type": {"type": "long", "logicalType": "time-micros"}},
        {"name": "key", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["NEW", "PAID"]}},
        {"name": "token", "type": "bytes"},
        {"name": "marks", "type": {"type": "array", "items": ["null", "long", "double", "State"]}},
        {"name": "counts", "type": {"type": "map", "values": "int"}},
    ],
}
CUSTOMER_PROTO = 'syntax = "proto3";\npackage shop;\nmessage Customer { string name = 1; }\n'
ORDER_PROTO = """syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "shop/customer.proto";

message Unused { bool unused = 1; }

// What is bought.
message Order {
  message Item {
    string sku = 1;
    double price = 2;
  }
  enum State { NEW = 0; PAID = 1; }
  double total = 1;
  Customer customer = 2;
  google.protobuf.Timestamp made_at = 3;
  State state = 4;
  bytes token = 5;
  repeated Item items = 6;
  int64 cents = 7;
}
"""


def framed(schema, payload):
    return bytes([0]) + schema.to_bytes(4, "big") + payload


def avro(total, schema=AVRO):
    order = {
        "total": decimal.Decimal(total),
        "customer": {"name": 'Äda "Bob"', "card": "4711"},
        "made": datetime.datetime(2026, 3, 1, 12, 0, 0, 123000, datetime.timezone.utc),
        "day": datetime.date(2026, 3, 1),
        "at": datetime.time(23, 59, 59, 500000),
        "key": uuid.UUID("f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
        "state": "PAID",
        "token": b"\xff\xfe",
        "marks": [None, 9007199254740993, 0.5, ("shop.State", "NEW")],
        "counts": {"a": 1},
    }
    named = {}
    fastavro.parse_schema(CUSTOMER_AVRO, named)
    written = io.BytesIO()
    fastavro.schemaless_writer(written, fastavro.parse_schema(ORDER_AVRO, named), order)
    return framed(schema, written.getvalue())


def protobuf_types():
    """The files of ORDER_PROTO and CUSTOMER_PROTO, as protoc would have them."""
    kinds = descriptor_pb2.FieldDescriptorProto
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)

    def add(message, name, number, kind, type_name=None, label=kinds.LABEL_OPTIONAL):
        message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name)

    customer = descriptor_pb2.FileDescriptorProto(name="shop/customer.proto", package="shop", syntax="proto3")
    add(customer.message_type.add(name="Customer"), "name", 1, kinds.TYPE_STRING)
    pool.Add(customer)
    file = descriptor_pb2.FileDescriptorProto(name="shop/order.proto", package="shop", syntax="proto3")
    file.dependency.extend(["google/protobuf/timestamp.proto", "shop/customer.proto"])
    add(file.message_type.add(name="Unused"), "unused", 1, kinds.TYPE_BOOL)
    order = file.message_type.add(name="Order")
    item = order.nested_type.add(name="Item")
    add(item, "sku", 1, kinds.TYPE_STRING)
    add(item, "price", 2, kinds.TYPE_DOUBLE)
    state = order.enum_type.add(name="State")
    state.value.add(name="NEW", number=0)
    state.value.add(name="PAID", number=1)
    add(order, "total", 1, kinds.TYPE_DOUBLE)
    add(order, "customer", 2, kinds.TYPE_MESSAGE, ".shop.Customer")
    add(order, "made_at", 3, kinds.TYPE_MESSAGE, ".google.protobuf.Timestamp")
    add(order, "state", 4, kinds.TYPE_ENUM, ".shop.Order.State")
    add(order, "token", 5, kinds.TYPE_BYTES)
    add(order, "items", 6, kinds.TYPE_MESSAGE, ".shop.Order.Item", kinds.LABEL_REPEATED)
    add(order, "cents", 7, kinds.TYPE_INT64)
    pool.Add(file)
    return pool


def protobuf(total):
    order = message_factory.GetMessageClass(protobuf_types().FindMessageTypeByName("shop.Order"))()
    order.total = total
    order.customer.name = 'Äda "Bob"'
    order.made_at.FromJsonString("2026-03-01T12:00:00.123Z")
    order.state = 1
    order.token = b"\xff\xfe"
    order.items.add(sku="a", price=1.5)
    order.items.add()
    order.cents = 9007199254740993
    # One index, which is 1, both in zigzag.
    return framed(PROTOBUF, bytes([2, 2]) + order.SerializeToString())


def protobuf_item():
    item = message_factory.GetMessageClass(protobuf_types().FindMessageTypeByName("shop.Order.Item"))()
    item.sku = "inner"
    return framed(PROTOBUF, bytes([4, 2, 0]) + item.SerializeToString())


MESSAGES = {
    "avro": avro("120.50"),
    "avro_small": avro("5.00"),
    "avro_missing": avro("120.50", MISSING),
    "protobuf": protobuf(130.25),
    "protobuf_item": protobuf_item(),
    "json": framed(JSON_SCHEMA, b'{"total": 140}'),
}
CUSTOMER = {"subject": "customer", "version": 2}
AVRO_SCHEMA = {"schema": json.dumps(ORDER_AVRO), "references": [{"name": "shop.Customer", **CUSTOMER}]}
ANSWERS = {
    f"/schemas/ids/{AVRO}": AVRO_SCHEMA,
    f"/schemas/ids/{PROTOBUF}": {
        "schemaType": "PROTOBUF",
        "schema": ORDER_PROTO,
        "references": [{"name": "shop/customer.proto", "subject": "customer proto", "version": 1}],
    },
    f"/schemas/ids/{JSON_SCHEMA}": {"schemaType": "JSON", "schema": '{"type": "object"}'},
    "/subjects/customer/versions/2": {"schema": json.dumps(CUSTOMER_AVRO), **CUSTOMER, "id": 7},
    "/subjects/customer%20proto/versions/1": {"schemaType": "PROTOBUF", "schema": CUSTOMER_PROTO},
}
ASKED = {}
LOCK = threading.Lock()


class Registry(BaseHTTPRequestHandler):
    def do_GET(self):
        path = urlsplit(self.path).path
        if path == "/results":
            return self.answer(200, ASKED)
        with LOCK:
            ASKED[path] = ASKED.get(path, 0) + 1
        if self.headers.get("authorization") != AUTHORIZATION:
            return self.answer(401, {"error_code": 401, "message": "unauthorized"})
        if path not in ANSWERS:
            return self.answer(404, {"error_code": 40403, "message": "schema not found"})
        self.answer(200, ANSWERS[path])

    def do_POST(self):
        ANSWERS[f"/schemas/ids/{MISSING}"] = AVRO_SCHEMA
        self.answer(200, {})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "0"))), Registry)
encoded = {name: base64.b64encode(message).decode() for name, message in MESSAGES.items()}
print(server.server_address[1], json.dumps(encoded), flush=True)
server.serve_forever()
