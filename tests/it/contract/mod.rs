//! The broker contract: the same cases, run against every implementation on the real thing.
//!
//! A [`Place`] makes brokers of one kind that share a group, as instances of the bridge would; a
//! [`Rig`] runs one and is the pipeline's end of its intakes.

mod cases;
mod letters;
mod places;
pub mod rig;

macro_rules! run_against {
    ($($file:ident::$case:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $case() {
                super::$file::$case(super::places::Embedded::new()).await;
            })*
        }
        mod kafka {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$file::$case(super::places::Kafka::new().await).await;
            })*
        }
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$file::$case(super::places::RabbitMq::new()).await;
            })*
        }
    };
}

run_against!(
    cases::an_event_is_taken_with_all_that_it_carries,
    cases::a_settled_event_does_not_come_again,
    cases::a_dropped_receipt_comes_again,
    cases::an_unsettled_event_comes_to_the_next_instance,
    cases::events_settled_out_of_order_leave_only_the_rest,
    cases::a_parked_delivery_comes_back_whole_and_never_early,
    cases::a_wait_longer_than_a_tier_passes_several,
    cases::a_hold_comes_back_as_a_hold,
    cases::a_parked_delivery_survives_its_instance,
    cases::a_tier_is_released,
    cases::an_order_brings_forward_what_is_of_one_subscription,
    cases::an_order_drops_what_is_of_one_subscription,
    cases::what_is_parked_is_listed_twenty_times_undisturbed,
    cases::a_full_window_takes_no_more,
    cases::hostile_content_is_taken_and_parked_as_it_is,
    cases::what_is_told_is_read_in_its_order_from_the_first_on,
    letters::a_dead_letter_is_listed_fifty_times_undisturbed,
    letters::a_pass_goes_through_all_in_order_and_leaves_what_it_does_not_remove,
    letters::a_listing_removes_nothing,
    letters::what_dies_during_a_pass_is_left_for_the_next,
    letters::of_two_who_change_one_is_told_that_it_is_busy,
    letters::a_revived_letter_comes_back_with_a_new_budget,
    letters::an_edited_letter_comes_back_as_another_event,
    letters::a_letter_without_its_body_is_not_revived,
    letters::a_sweep_removes_what_is_older_than_its_retention,
    letters::ten_thousand_letters_are_gone_through_in_seconds,
);
