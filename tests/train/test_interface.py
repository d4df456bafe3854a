"""The network that workers meet on."""

import psutil

from raybert.train.interface import interface_of


def test_the_interface_of_an_address():
    for name, bound in psutil.net_if_addrs().items():
        for each in bound:
            if each.family.name == "AF_INET":
                assert interface_of(each.address) == name
    assert interface_of("192.0.2.1") is None  # for documentation only (RFC 5737)
