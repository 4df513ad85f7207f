#!/bin/sh
# curl against a gateway: address and key come from the environment, as for the other clients.
set -eu

say() { curl --silent --show-error --noproxy '*' --max-time 60 -H "Authorization: Bearer $OPENAI_API_KEY" "$@"; }
holds() { case "$2" in *"$1"*) ;; *) echo "no '$1' in: $2" >&2; exit 1 ;; esac; }
BODY='{"model": "reference", "messages": [{"role": "user", "content": "Which city is Norway'"'"'s capital?"}], "max_tokens": 7'

curl --version | head -n 1 | cut -d ' ' -f 1,2
holds '"reference"' "$(say "$OPENAI_BASE_URL/models")"
echo ok models
holds '"finish_reason"' "$(say --fail --json "$BODY}" "$OPENAI_BASE_URL/chat/completions")"
echo ok chat
stream="$(say --fail --no-buffer --json "$BODY, \"stream\": true}" "$OPENAI_BASE_URL/chat/completions")"
holds 'data: {"id"' "$stream"
holds 'data: [DONE]' "$stream"
echo ok streaming
holds '"text"' "$(say --fail --json '{"prompt": "import os", "max_tokens": 3}' "$OPENAI_BASE_URL/completions")"
echo ok completions
holds ' 200 ' "$(say --http1.0 --include --json "$BODY}" "$OPENAI_BASE_URL/chat/completions")"
echo ok http/1.0
printf '%s}' "$BODY" | say --fail -H 'Content-Type: application/json' -H 'Transfer-Encoding: chunked' --data-binary @- \
	-H 'Expect: 100-continue' "$OPENAI_BASE_URL/chat/completions" > /dev/null
echo ok chunked with expect
refused="$(say --include -d '{}' "$OPENAI_BASE_URL/chat/completions")" # without -H: declared as a form
holds ' 415 ' "$refused"
holds '"unsupported_media_type"' "$refused"
holds ' 401 ' "$(curl --silent --noproxy '*' --include --json "$BODY}" "$OPENAI_BASE_URL/chat/completions")"
holds ' 405 ' "$(say --include "$OPENAI_BASE_URL/chat/completions")"
holds ' 404 ' "$(say --include "$OPENAI_BASE_URL/nothing")"
echo ok refusals
holds ' 200 ' "$(say --head "${OPENAI_BASE_URL%/v1}/health")"
holds '"openapi"' "$(say --fail "${OPENAI_BASE_URL%/v1}/openapi.json")"
echo ok health and openapi
