//! The broker contract: the same cases, run against every implementation on the real thing.
//!
//! A [`Place`] makes brokers of one kind that share a group, as instances of the bridge would; a
//! [`Rig`] runs one and is the pipeline's end of its intakes.

mod cases;
mod places;
pub mod rig;

macro_rules! run_against {
    ($($case:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $case() {
                super::cases::$case(super::places::Embedded::new()).await;
            })*
        }
        mod kafka {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::cases::$case(super::places::Kafka::new().await).await;
            })*
        }
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::cases::$case(super::places::RabbitMq::new()).await;
            })*
        }
    };
}

run_against!(
    an_event_is_taken_with_all_that_it_carries,
    a_settled_event_does_not_come_again,
    a_dropped_receipt_comes_again,
    an_unsettled_event_comes_to_the_next_instance,
    events_settled_out_of_order_leave_only_the_rest,
    a_parked_delivery_comes_back_whole_and_never_early,
    a_wait_longer_than_a_tier_passes_several,
    a_hold_comes_back_as_a_hold,
    a_parked_delivery_survives_its_instance,
    a_dead_letter_is_listed_fifty_times_undisturbed,
    a_claimed_letter_is_gone_when_settled,
    a_claimed_letter_is_back_when_dropped,
    a_tier_is_released,
    an_order_brings_forward_what_is_of_one_subscription,
    an_order_drops_what_is_of_one_subscription,
    what_is_parked_is_listed_twenty_times_undisturbed,
    a_full_window_takes_no_more,
    hostile_content_is_taken_and_parked_as_it_is,
);
