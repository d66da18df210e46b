<?php

// Runs the `verify` of a page of docs/receivers on requests, and prints what it says of each.

error_reporting(E_ALL);
set_error_handler(function ($level, $why) {
    throw new ErrorException($why);
});
require $argv[1];

$asked = json_decode(stream_get_contents(STDIN), true);
$said = [];
foreach ($asked['cases'] as $case) {
    $case['body'] = base64_decode($case['body']);
    try {
        $said[$case['name']] = verify(...array_map(fn ($name) => $case[$name], $asked['arguments']));
    } catch (Throwable $why) {
        $said[$case['name']] = get_class($why) . ': ' . $why->getMessage();
    }
}
echo json_encode($said);
