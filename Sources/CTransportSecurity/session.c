#include "CTransportSecurity.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ctls_session {
    SSL_CTX *context;
    SSL *connection;
};

static void explain(const char *what, char *message, size_t room) {
    unsigned long error = ERR_peek_last_error();
    char text[200] = "the peer closed the connection";
    if (error) ERR_error_string_n(error, text, sizeof text);
    snprintf(message, room, "%s: %s", what, text);
    ERR_clear_error();
}

static int load_revocations(SSL_CTX *context, const char *path) {
    X509_STORE *store = SSL_CTX_get_cert_store(context);
    X509_LOOKUP *lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());
    if (!lookup || X509_load_crl_file(lookup, path, X509_FILETYPE_PEM) <= 0) return 0;
    return X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
}

// What could not be done, null if all was.
static const char *set_up(struct ctls_session *session, const struct ctls_settings *settings) {
    SSL_CTX *context = session->context;
    if (!SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION)) return "can't set the version of TLS";
    if (settings->authority) {
        if (SSL_CTX_load_verify_locations(context, settings->authority, 0) != 1) return "can't load the authority";
    } else if (SSL_CTX_set_default_verify_paths(context) != 1) {
        return "can't load the system's authorities";
    }
    if (settings->revocations && !load_revocations(context, settings->revocations))
        return "can't load the revoked certificates";
    if (!settings->certificate || SSL_CTX_use_certificate_chain_file(context, settings->certificate) != 1)
        return "can't load our certificate";
    if (!settings->key || SSL_CTX_use_PrivateKey_file(context, settings->key, SSL_FILETYPE_PEM) != 1)
        return "can't load the key of our certificate";
    if (SSL_CTX_check_private_key(context) != 1) return "the key is not our certificate's";
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, 0);
    // One session is all there is: tickets would only be read in between by the peer.
    SSL_CTX_set_num_tickets(context, 0);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    session->connection = SSL_new(context);
    if (!session->connection) return "can't begin a session";
    if (settings->name) {
        X509_VERIFY_PARAM *parameters = SSL_get0_param(session->connection);
        // An address is no name.
        if (!X509_VERIFY_PARAM_set1_ip_asc(parameters, settings->name)) {
            ERR_clear_error();
            if (!SSL_set1_host(session->connection, settings->name)) return "can't check the peer's name";
            SSL_set_tlsext_host_name(session->connection, settings->name);
        }
    }
    return 0;
}

struct ctls_session *ctls_open(int socket, const struct ctls_settings *settings, char *message, size_t room) {
    if (!OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, 0)) {
        explain("can't set up TLS", message, room);
        return 0;
    }
    struct ctls_session *session = calloc(1, sizeof *session);
    if (!session) {
        snprintf(message, room, "can't get memory for TLS");
        return 0;
    }
    session->context = SSL_CTX_new(settings->is_server ? TLS_server_method() : TLS_client_method());
    const char *problem = session->context ? set_up(session, settings) : "can't set up TLS";
    if (!problem) {
        SSL_set_fd(session->connection, socket);
        int done = settings->is_server ? SSL_accept(session->connection) : SSL_connect(session->connection);
        if (done == 1) return session;
        problem = "the TLS handshake failed";
        long verdict = SSL_get_verify_result(session->connection);
        if (verdict != X509_V_OK) {
            snprintf(message, room, "%s: %s", problem, X509_verify_cert_error_string(verdict));
            ERR_clear_error();
            ctls_close(session, 0);
            return 0;
        }
    }
    explain(problem, message, room);
    ctls_close(session, 0);
    return 0;
}

long ctls_receive(struct ctls_session *session, void *bytes, size_t count, char *message, size_t room) {
    size_t got = 0;
    ERR_clear_error();
    if (SSL_read_ex(session->connection, bytes, count, &got) == 1) return (long)got;
    if (SSL_get_error(session->connection, 0) == SSL_ERROR_ZERO_RETURN) return 0;
    explain("can't receive", message, room);
    return -1;
}

int ctls_send(struct ctls_session *session, const void *bytes, size_t count, char *message, size_t room) {
    size_t sent = 0;
    ERR_clear_error();
    if (SSL_write_ex(session->connection, bytes, count, &sent) == 1 && sent == count) return 0;
    explain("can't send", message, room);
    return -1;
}

int ctls_has_pending(const struct ctls_session *session) { return SSL_has_pending(session->connection); }

void ctls_close(struct ctls_session *session, int is_orderly) {
    if (!session) return;
    if (session->connection) {
        // The second call waits for the peer's own word.
        if (is_orderly && SSL_shutdown(session->connection) == 0) SSL_shutdown(session->connection);
        SSL_free(session->connection);
    }
    SSL_CTX_free(session->context);
    free(session);
    ERR_clear_error();
}
