//! Which addresses of a network may be one machine's.

use std::net::{IpAddr, Ipv6Addr};

/// Returns the address that stands for all that one machine may have.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    /// Of the 128 bits, those of the network.
    const NETWORK: u128 = !0 << 64;
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) => IpAddr::V4(four),
            None => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & NETWORK)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_is_one_machines_and_an_address_of_ipv4_is_the_same_in_both() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!([of("2001:db8::1"), of("2001:db8::ffff:2")], ["2001:db8::", "2001:db8::"]);
        assert_eq!(
            [of("2001:db8:0:1::1"), of("::ffff:192.0.2.1"), of("192.0.2.1")],
            ["2001:db8:0:1::", "192.0.2.1", "192.0.2.1"]
        );
    }
}
