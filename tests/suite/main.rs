//! Refit from outside: the real program, started as a user starts it, judged by what a user sees.
//!
//! One file per subject; [`appliance`] is the builder they share, [`release`] makes the packages, [`load`] the clients.
//! Every test has a home and ports of its own and ends what it started: all run side by side, as root or as anybody.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed"
)]

mod access;
mod adoption;
mod api;
mod appliance;
mod at_rest;
mod begin;
mod blame;
mod bus;
mod bus_cli;
mod cases;
mod cherrypy;
mod clock;
mod commit;
mod components;
mod config;
mod confirm;
mod crash;
mod cut_short;
mod damage;
mod demo;
mod descriptors;
mod dies;
mod docs;
mod doors;
mod early;
mod embed;
#[cfg(feature = "fault")]
mod fault;
mod full_disk;
mod health;
mod history;
mod hostile;
mod http;
mod last_resort;
mod leftovers;
mod limits;
mod listeners;
mod live_config;
mod load;
mod logs;
mod manager;
mod many;
mod modes;
mod mounting;
mod mounts;
mod notify;
mod openapi;
mod owner;
mod package;
mod parking;
mod paths;
mod pause;
mod peers;
mod process;
mod read_only;
mod readiness;
mod receive;
mod refuse;
mod release;
mod reload;
mod repair;
mod reports;
mod repository;
mod revive;
mod runs;
mod servers;
mod sockets;
mod tidy;
mod together;
mod trouble;
mod trust;
mod untried;
mod vendor;
mod voyage;
mod wait;
mod waits;
mod watch;
mod way_back;
mod web;
mod words;
mod wsgi;
