#!/usr/bin/env bash
# Streams a chat completion with a signed request; needs bash, curl 7.76 and openssl. Prints the
# events as they come. No secret, signature or prompt stands in a process's arguments, where all
# users of the machine could read it.
set -euo pipefail

sha256() { openssl dgst -sha256 -r | cut -d ' ' -f 1; }

# HMAC-SHA256 (RFC 2104) of standard input. `openssl dgst -hmac` would take the secret as an argument.
hmac() {
    local key inner='' outer='' i
    key="$(printf %s "$1" | od -An -v -tx1 | tr -d ' \n')"
    if [ "${#key}" -gt 128 ]; then key="$(printf %s "$1" | sha256)"; fi
    for ((i = 0; i < 128; i += 2)); do
        printf -v inner '%s\\x%02x' "$inner" "$((0x0${key:i:2} ^ 0x36))"
        printf -v outer '%s\\x%02x' "$outer" "$((0x0${key:i:2} ^ 0x5c))"
    done
    { printf %b "$outer"; { printf %b "$inner"; cat; } | openssl dgst -sha256 -binary; } | sha256
}

# The Authorization header of one request, whose body is standard input.
sign() {
    local key_id="$1" secret="$2" method="$3" path="$4" query="$5" timestamp nonce digest text signature
    timestamp="$(date +%s)"
    nonce="$(openssl rand -hex 16)"
    digest="$(sha256)"
    text="$(printf '%s\n' TG-HMAC-SHA256 "$method" "$path" "$query" "$timestamp" "$nonce" "$digest")"
    signature="$(printf %s "$text" | hmac "$secret")"
    printf 'Authorization: TG-HMAC-SHA256 id=%s, timestamp=%s, nonce=%s, digest=%s, signature=%s\n' \
        "$key_id" "$timestamp" "$nonce" "$digest" "$signature"
}

path=/v1/chat/completions
body='{"model":"deepseek-flash","stream":true,"messages":[{"role":"user","content":"Say hello."}]}'
header="$(printf %s "$body" | sign "$TIDEGATE_KEY_ID" "$TIDEGATE_SECRET" POST "$path" '')"

printf %s "$body" | curl --silent --show-error --fail-with-body --no-buffer --data-binary @- \
    --header 'Content-Type: application/json' --header @<(printf %s "$header") "$TIDEGATE_URL$path" | {
    while IFS= read -r line || [ -n "$line" ]; do
        printf '%s\n' "$line"
        if [ "$line" = 'data: [DONE]' ]; then whole=yes; fi
    done
    [ "${whole:-no}" = yes ]
}
