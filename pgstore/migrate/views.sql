-- Views with the names and columns of whatsmeow's sqlstore (version 15), for programs that query its tables. They only read. They show keys: nobody may use them but who made
-- them, until he grants it.
CREATE SCHEMA IF NOT EXISTS {views};

-- A string as it was. What PostgreSQL's text cannot hold is left out (NUL) or replaced (broken UTF-8).
CREATE OR REPLACE FUNCTION {views}.pgstore_text(value jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
SELECT CASE WHEN jsonb_typeof(value) = 'object' THEN NULL ELSE value #>> '{}' END $$;

-- A part of a key id, unescaped. Between two backslashes that stand for one there is no other escape.
CREATE OR REPLACE FUNCTION {views}.pgstore_part(id text, n int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
SELECT string_agg(replace(regexp_replace(replace(piece, '\p', '|'), '\\x[0-9a-f]{2}', U&'\FFFD', 'g'), '\0', ''), '\' ORDER BY i)
FROM unnest(string_to_array(split_part(id, '|', n), '\\')) WITH ORDINALITY AS x (piece, i) $$;

-- Bytes that name a key.
CREATE OR REPLACE FUNCTION {views}.pgstore_bytes(id text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
SELECT decode(rpad(translate(id, '-_', '+/'), (length(id) + 3) / 4 * 4, '='), 'base64') $$;

-- A session or a sender key as libsignal reads it.
CREATE OR REPLACE FUNCTION {views}.pgstore_record(data jsonb) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
SELECT coalesce(convert_to(CASE WHEN jsonb_typeof(data->'record') = 'string' THEN data->>'record' END, 'UTF8'),
    decode(data->'record'->>'b64', 'base64'), decode(data->>'record_b64', 'base64')) $$;

-- All keys with the JID of their device. What is encrypted cannot be shown.
CREATE OR REPLACE VIEW {views}.pgstore_keys AS
SELECT {views}.pgstore_part(i.jid, 1) AS our_jid, k.key_type, k.key_id, k.data
FROM {schema}.auth_keys k JOIN {schema}.instances i ON i.id = k.instance_id
WHERE NOT k.data ? 'enc';

CREATE OR REPLACE VIEW {views}.whatsmeow_device AS
SELECT our_jid AS jid, d->>'lid' AS lid, (d->>'facebook_uuid')::uuid AS facebook_uuid, (d->>'registration_id')::bigint AS registration_id,
    decode(d->>'noise_key', 'base64') AS noise_key, decode(d->>'identity_key', 'base64') AS identity_key,
    decode(d->>'signed_pre_key', 'base64') AS signed_pre_key, (d->>'signed_pre_key_id')::int AS signed_pre_key_id, decode(d->>'signed_pre_key_sig', 'base64') AS signed_pre_key_sig,
    decode(d->>'adv_key', 'base64') AS adv_key, decode(d->>'adv_details', 'base64') AS adv_details, decode(d->>'adv_account_sig', 'base64') AS adv_account_sig,
    decode(d->>'adv_account_sig_key', 'base64') AS adv_account_sig_key, decode(d->>'adv_device_sig', 'base64') AS adv_device_sig,
    coalesce({views}.pgstore_text(d->'platform'), '') AS platform, coalesce({views}.pgstore_text(d->'business_name'), '') AS business_name,
    coalesce({views}.pgstore_text(d->'push_name'), '') AS push_name, (d->>'lid_migration_ts')::bigint AS lid_migration_ts,
    coalesce({views}.pgstore_text(d->'companion_meta_nonce'), '') AS companion_meta_nonce
FROM (SELECT our_jid, data->'device' AS d FROM {views}.pgstore_keys WHERE key_type = 'creds' AND key_id = 'device') AS creds;

CREATE OR REPLACE VIEW {views}.whatsmeow_identity_keys AS
SELECT our_jid, {views}.pgstore_part(key_id, 1) AS their_id, decode(data->>'value', 'base64') AS identity FROM {views}.pgstore_keys WHERE key_type = 'identity';

CREATE OR REPLACE VIEW {views}.whatsmeow_pre_keys AS
SELECT our_jid AS jid, key_id::int AS key_id, decode(data->>'private', 'base64') AS key, (data->>'uploaded')::bool AS uploaded FROM {views}.pgstore_keys WHERE key_type = 'pre_key';

CREATE OR REPLACE VIEW {views}.whatsmeow_sessions AS
SELECT our_jid, {views}.pgstore_part(key_id, 1) AS their_id, {views}.pgstore_record(data) AS session FROM {views}.pgstore_keys WHERE key_type = 'session';

CREATE OR REPLACE VIEW {views}.whatsmeow_sender_keys AS
SELECT our_jid, {views}.pgstore_part(key_id, 2) AS chat_id, {views}.pgstore_part(key_id, 1) AS sender_id, {views}.pgstore_record(data) AS sender_key
FROM {views}.pgstore_keys WHERE key_type = 'sender_key';

CREATE OR REPLACE VIEW {views}.whatsmeow_app_state_sync_keys AS
SELECT our_jid AS jid, decode(data->>'id', 'base64') AS key_id, decode(data->>'data', 'base64') AS key_data, (data->>'timestamp')::bigint AS timestamp,
    decode(data->>'fingerprint', 'base64') AS fingerprint
FROM {views}.pgstore_keys WHERE key_type = 'app_state_key';

CREATE OR REPLACE VIEW {views}.whatsmeow_app_state_version AS
SELECT our_jid AS jid, {views}.pgstore_part(key_id, 1) AS name, (data->>'version')::bigint AS version, decode(data->>'hash', 'base64') AS hash
FROM {views}.pgstore_keys WHERE key_type = 'app_state_version';

-- Of each index MAC the newest version; sqlstore has older ones beside it, which it never reads.
CREATE OR REPLACE VIEW {views}.whatsmeow_app_state_mutation_macs AS
SELECT our_jid AS jid, {views}.pgstore_part(key_id, 1) AS name, (data->>'version')::bigint AS version, {views}.pgstore_bytes(split_part(key_id, '|', 2)) AS index_mac,
    decode(data->>'value_mac', 'base64') AS value_mac
FROM {views}.pgstore_keys WHERE key_type = 'app_state_mac';

CREATE OR REPLACE VIEW {views}.whatsmeow_contacts AS
SELECT our_jid, {views}.pgstore_part(key_id, 1) AS their_jid, {views}.pgstore_text(data->'first_name') AS first_name, {views}.pgstore_text(data->'full_name') AS full_name,
    {views}.pgstore_text(data->'push_name') AS push_name, {views}.pgstore_text(data->'business_name') AS business_name, {views}.pgstore_text(data->'redacted_phone') AS redacted_phone
FROM {views}.pgstore_keys WHERE key_type = 'contact';

CREATE OR REPLACE VIEW {views}.whatsmeow_chat_settings AS
SELECT our_jid, {views}.pgstore_part(key_id, 1) AS chat_jid, coalesce((data->>'muted_until')::bigint, 0) AS muted_until, coalesce((data->>'pinned')::bool, false) AS pinned,
    coalesce((data->>'archived')::bool, false) AS archived
FROM {views}.pgstore_keys WHERE key_type = 'chat_settings';

CREATE OR REPLACE VIEW {views}.whatsmeow_message_secrets AS
SELECT our_jid, {views}.pgstore_part(key_id, 1) AS chat_jid, {views}.pgstore_part(key_id, 2) AS sender_jid, {views}.pgstore_part(key_id, 3) AS message_id,
    decode(data->>'secret', 'base64') AS key
FROM {views}.pgstore_keys WHERE key_type = 'message_secret';

CREATE OR REPLACE VIEW {views}.whatsmeow_privacy_tokens AS
SELECT our_jid, {views}.pgstore_part(key_id, 1) AS their_jid, decode(data->>'token', 'base64') AS token, (data->>'timestamp')::bigint AS timestamp,
    (data->>'sender_timestamp')::bigint AS sender_timestamp
FROM {views}.pgstore_keys WHERE key_type = 'privacy_token';

CREATE OR REPLACE VIEW {views}.whatsmeow_nct_salt AS
SELECT our_jid, decode(data->>'value', 'base64') AS salt FROM {views}.pgstore_keys WHERE key_type = 'nct_salt';

CREATE OR REPLACE VIEW {views}.whatsmeow_lid_map AS
SELECT {views}.pgstore_part(lid, 1) AS lid, {views}.pgstore_part(pn, 1) AS pn FROM {schema}.lid_map OFFSET 0;

CREATE OR REPLACE VIEW {views}.whatsmeow_event_buffer AS
SELECT our_jid, {views}.pgstore_bytes(key_id) AS ciphertext_hash, decode(data->>'plaintext', 'base64') AS plaintext, (data->>'server_s')::bigint AS server_timestamp,
    (data->>'insert_ms')::bigint AS insert_timestamp
FROM {views}.pgstore_keys WHERE key_type = 'buffered_event';

CREATE OR REPLACE VIEW {views}.whatsmeow_retry_buffer AS
SELECT our_jid, {views}.pgstore_part(key_id, 1) AS chat_jid, {views}.pgstore_part(key_id, 2) AS message_id, {views}.pgstore_text(data->'format') AS format,
    decode(data->>'plaintext', 'base64') AS plaintext, (data->>'insert_ms')::bigint AS timestamp
FROM {views}.pgstore_keys WHERE key_type = 'outgoing_event';
