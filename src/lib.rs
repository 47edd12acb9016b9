#![doc = include_str!("architecture.md")]

pub mod announce;
pub mod config;
pub mod event;
pub mod lifecycle;
pub mod signature;
pub mod telemetry;

pub mod api;
pub mod enrich;
pub mod ingest;
pub mod lake;
pub mod receive;
pub mod reconcile;
pub mod replay;
pub mod spool;
pub mod table;
pub mod topic;
pub mod verify;

pub mod cli;
pub mod emulator;
