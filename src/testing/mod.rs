//! Models of the store for the schedule explorer.

pub(crate) mod schedules;
