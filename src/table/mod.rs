//! Conversations and callbacks as Arrow.

pub mod row;
