"""Why a packet or message was not used: one name for each reason, counted and asserted on in tests."""

from __future__ import annotations

from enum import Enum


class DropReason(Enum):
    """The reasons. The engine mirrors the first group in C; a test keeps the two equal."""

    # Shared with the engine, in this order.
    TOO_SHORT = "too_short"  # fewer bytes than the smallest message of its type
    BAD_LENGTH = "bad_length"  # a length field contradicts the datagram
    UNKNOWN_INDEX = "unknown_index"  # no keypair has this receiver index
    EXPIRED_KEY = "expired_key"  # the keypair is older than REJECT_AFTER_TIME or used up
    DECRYPT_FAILED = "decrypt_failed"  # the AEAD tag is wrong
    REPLAYED = "replayed"  # counter seen before, or older than the window
    NOT_IP = "not_ip"  # the inner packet is neither IPv4 nor IPv6, or lies about its length
    DISALLOWED_SOURCE = (
        "disallowed_source"  # the inner source address, or a relay frame's sender, is another than it says
    )
    NO_ROUTE = "no_route"  # no peer has the inner destination
    NO_ENDPOINT = "no_endpoint"  # the peer has no address yet
    NO_KEYPAIR = "no_keypair"  # no session, and the queue for the first packets is full
    QUEUE_FULL = "queue_full"  # the bounded queue to Python is full
    SEND_FAILED = "send_failed"  # the kernel refused the datagram
    SEND_FULL_EXPEDITED = "send_full_expedited"  # the socket's buffer is full, of voice and signalling even
    SEND_FULL_SMALL = "send_full_small"  # … too full for small packets without a mark
    SEND_FULL_BULK = "send_full_bulk"  # … half full: what is left is for the others
    TUN_FULL_EXPEDITED = "tun_full_expedited"  # the TUN device has no room, by the same ranks
    TUN_FULL_SMALL = "tun_full_small"
    TUN_FULL_BULK = "tun_full_bulk"
    TUN_DOWN = "tun_down"  # the interface is down
    TOO_BIG = "too_big"  # larger than the buffer or the path admits
    CONGESTED = "congested"  # RFC 6040: congestion was marked outside and cannot be told inside
    OVER_LIMIT = "over_limit"  # a cap is reached
    SECOND_COPY = "second_copy"  # counter seen before, on a path on which the peer is known to send

    # Handshakes, disco, STUN, control.
    UNKNOWN_TYPE = "unknown_type"  # no message type has this first word
    BAD_MAC1 = "bad_mac1"  # not made for our public key
    BAD_MAC2 = "bad_mac2"  # under load, without a valid cookie
    UNKNOWN_PEER = "unknown_peer"  # a valid handshake of a key that is no member's
    STALE_TIMESTAMP = "stale_timestamp"  # an initiation not newer than the last one
    FLOOD = "flood"  # faster than the limit for its source
    MALFORMED = "malformed"  # does not parse
    NOT_FOR_US = "not_for_us"  # addressed to somebody else
    BAD_SIGNATURE = "bad_signature"  # the signature does not verify
    STALE = "stale"  # older than what is known, or later than a call has use for
    CLONED = "cloned"  # a handshake of a second host with the identity of one that is there
    UNEXPECTED = "unexpected"  # an answer that nobody asked for
