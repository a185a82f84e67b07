CREATE TABLE {schema}.schema_info (version int PRIMARY KEY, usable_from int NOT NULL);
INSERT INTO {schema}.schema_info VALUES (1, 1);

-- Who an instance is and who writes it. epoch comes from one sequence and never comes back;
-- seq grows with every flush; timeline is the WAL timeline on which the instance was taken.
CREATE SEQUENCE {schema}.epochs;

CREATE TABLE {schema}.instances (
    id              text COLLATE "C" PRIMARY KEY CHECK (id <> ''),
    jid             text COLLATE "C" NOT NULL UNIQUE,
    lid             text COLLATE "C" NOT NULL DEFAULT '',
    epoch           bigint NOT NULL,
    owner           text NOT NULL DEFAULT '',
    seq             bigint NOT NULL DEFAULT 0,
    clean_at_epoch  bigint NOT NULL DEFAULT 0,
    step_through    bigint NOT NULL DEFAULT 0,
    abandon_through bigint NOT NULL DEFAULT 0,
    timeline        text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    taken_at        timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- The keys. data is kept inline (no compression, no TOAST up to a page), and pages are
-- half empty, so that an update finds room for the new row on the page of the old one (HOT).
CREATE TABLE {schema}.auth_keys (
    instance_id text COLLATE "C" NOT NULL REFERENCES {schema}.instances (id) ON DELETE CASCADE,
    key_type    text COLLATE "C" NOT NULL CHECK (key_type IN (
        'creds', 'identity', 'session', 'pre_key', 'sender_key', 'app_state_key', 'app_state_version',
        'app_state_mac', 'contact', 'chat_settings', 'message_secret', 'privacy_token', 'nct_salt',
        'buffered_event', 'outgoing_event')),
    key_id      text COLLATE "C" NOT NULL CHECK (octet_length(key_id) <= 1100),
    data        jsonb NOT NULL CHECK (jsonb_typeof(data) = 'object'),
    seq         bigint NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (instance_id, key_type, key_id)
) WITH (fillfactor = 45, toast_tuple_target = 8160,
        autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE {schema}.auth_keys ALTER COLUMN data SET STORAGE EXTERNAL;

-- The LID map belongs to no device. One LID per phone number and one phone number per LID.
CREATE TABLE {schema}.lid_map (
    lid text COLLATE "C" PRIMARY KEY,
    pn  text COLLATE "C" NOT NULL UNIQUE
);

-- Rows that could not be read are moved here, so that a person can look at them.
CREATE TABLE {schema}.set_aside (
    instance_id text COLLATE "C" NOT NULL REFERENCES {schema}.instances (id) ON DELETE CASCADE,
    key_type    text COLLATE "C" NOT NULL,
    key_id      text COLLATE "C" NOT NULL,
    data        jsonb NOT NULL,
    reason      text NOT NULL,
    at          timestamptz NOT NULL DEFAULT now()
);

-- A record is JSON text; this reads it without failing on one that is not.
CREATE FUNCTION {schema}.record_json(data jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN (data->>'record')::jsonb;
EXCEPTION WHEN others THEN
    RETURN NULL;
END $$;

-- Counters and chains for people, without a key in it.
CREATE VIEW {schema}.session_counters AS
SELECT instance_id, key_id AS address, seq, updated_at,
       (r #>> '{SessionState,SenderChain,ChainKey,Index}')::bigint AS sending_counter,
       CASE WHEN jsonb_typeof(r #> '{SessionState,ReceiverChains}') = 'array'
            THEN jsonb_array_length(r #> '{SessionState,ReceiverChains}') END AS receiving_chains,
       CASE WHEN jsonb_typeof(r -> 'PreviousStates') = 'array'
            THEN jsonb_array_length(r -> 'PreviousStates') END AS archived_states,
       octet_length(data->>'record') AS bytes
FROM {schema}.auth_keys, LATERAL (SELECT {schema}.record_json(data) AS r) AS parsed
WHERE key_type = 'session';

CREATE VIEW {schema}.sender_key_counters AS
SELECT instance_id, key_id AS group_and_sender, seq, updated_at,
       (r #>> '{SenderKeyStates,0,KeyID}')::bigint AS key_id,
       (r #>> '{SenderKeyStates,0,SenderChainKey,Iteration}')::bigint AS iteration,
       CASE WHEN jsonb_typeof(r -> 'SenderKeyStates') = 'array'
            THEN jsonb_array_length(r -> 'SenderKeyStates') END AS states
FROM {schema}.auth_keys, LATERAL (SELECT {schema}.record_json(data) AS r) AS parsed
WHERE key_type = 'sender_key';
