FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY config config
COPY src src
# The manifest names the test binary; its source is not needed to build the program.
RUN mkdir -p tests/it && touch tests/it/main.rs \
    && cargo build --release --locked --bin hookbridge

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --home-dir /var/lib/hookbridge --create-home --uid 10001 hookbridge
COPY --from=build /build/target/release/hookbridge /usr/local/bin/hookbridge
USER hookbridge
WORKDIR /var/lib/hookbridge
VOLUME /var/lib/hookbridge
EXPOSE 8400
ENTRYPOINT ["hookbridge"]
CMD ["run", "--config", "/etc/hookbridge/hookbridge.yaml"]
