// TLS over a connected socket, by OpenSSL. The library is set up at the first use and reads no configuration.
#pragma once
#include <stddef.h>

struct ctls_session;

struct ctls_settings {
    // Files in PEM; null where there is none. Without an authority the system's are trusted.
    const char *authority, *revocations, *certificate, *key;
    // The peer's certificate must bear this name or address; null: any name.
    const char *name;
    int is_server;
};

// Shakes hands on a connected socket. Null on failure; then `message` says why.
struct ctls_session *ctls_open(int socket, const struct ctls_settings *settings, char *message, size_t room);
// Bytes received: at least one, 0 at an orderly end, -1 on failure.
long ctls_receive(struct ctls_session *session, void *bytes, size_t count, char *message, size_t room);
// Sends all bytes: in records of their own, of at most 16 KiB. 0, or -1 on failure.
int ctls_send(struct ctls_session *session, const void *bytes, size_t count, char *message, size_t room);
// Whether bytes wait that have been received already.
int ctls_has_pending(const struct ctls_session *session);
// Ends the session, in an orderly way if nothing failed.
void ctls_close(struct ctls_session *session, int is_orderly);
